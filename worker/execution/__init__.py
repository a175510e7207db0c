"""Executing jobs: claim, call, decide, record, report."""

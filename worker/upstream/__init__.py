"""The API: calls, answers, streams, faults. Knows no job."""

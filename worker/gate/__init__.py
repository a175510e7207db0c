"""The gate: which calls may be made now, by the limits and the health of each endpoint."""

"""SQL: the one door to the tables. Each function says its intention; none decides."""

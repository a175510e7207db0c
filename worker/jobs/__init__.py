"""Pure values: requests, states, outcomes, views."""

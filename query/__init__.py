"""Reading back what is stored: every SELECT of the query service."""

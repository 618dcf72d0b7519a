"""What operators run by hand beside the workers."""

"""What a running process tells of itself: probes, metrics, systemd."""

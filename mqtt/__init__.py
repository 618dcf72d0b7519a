"""What Sluice says to and hears from an MQTT broker."""

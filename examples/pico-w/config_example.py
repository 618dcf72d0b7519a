"""Settings of one board. Copy to the board as `config.py`, with your own values."""

WIFI_SSID = "my-network"
WIFI_PASSWORD = "its-password"

BROKER = "192.168.1.10"
PORT = 1883
USER = ""  # empty: none
PASSWORD = ""

DEVICE_ID = "pico-1"  # unique: it is the client id at the broker too
PIN = 15  # the GPIO to which the sensor's data line goes
INTERVAL_S = 30  # at least 2: the sensor is no faster
NTP_HOST = "pool.ntp.org"

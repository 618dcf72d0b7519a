"""The live page: readings as they are stored, alerts, devices and the pipeline, pushed to browsers."""

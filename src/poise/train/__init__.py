"""One training run: its configuration, folder, record and alarms."""

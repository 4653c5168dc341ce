"""The mirror's configuration file and settings."""

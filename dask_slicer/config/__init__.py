"""Settings: the configuration model, and reading it from YAML and options."""

"""Settings: the configuration model, and its sources: YAML files and options."""

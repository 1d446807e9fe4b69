"""detkit: train, evaluate and compare object detectors from YAML."""

__version__ = "0.1.0"

"""Looking at data, models, configurations and parts, without a change to any."""

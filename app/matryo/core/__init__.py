"""What every layer stands on: errors, manifests, settings, metrics, logging."""

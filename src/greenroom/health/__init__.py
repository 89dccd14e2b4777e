"""The checks of a run's health: what they look for, and with which limits. `monitor.Monitor` runs them."""

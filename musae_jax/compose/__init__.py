"""Music with known truth: scores, the concepts they hold at 50 Hz, and the sound they make."""

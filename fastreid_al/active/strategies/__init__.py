"""Question strategies."""

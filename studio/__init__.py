"""The window: draws and reads, never computes; torch is never imported here."""

"""Checks: parity with official code, speed, regressions."""

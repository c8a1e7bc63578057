"""Tests of what both wings stand on: losses, policies, the replay buffer, settings."""

"""Bridges to other tools: SAEs for the hub, penalties for SAELens, files for dashboards, interpretation and steering."""

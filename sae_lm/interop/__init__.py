"""Bridges to other tools: plugins for them and exports to them get a module here each; there is none yet."""

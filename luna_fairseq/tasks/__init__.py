"""Tasks; fairseq imports every public file of this folder when it loads the plugin."""

from luna_fairseq import plugin

plugin.load()

"""Tasks; fairseq imports every public file of this folder when it loads the plugin."""

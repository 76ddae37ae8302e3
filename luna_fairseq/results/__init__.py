"""Results of the experiment scripts as tables, one experiment a file; reached by ``luna-fairseq table``."""

"""What prepares data; reached by ``luna-fairseq prepare`` and ``luna-fairseq fetch``."""

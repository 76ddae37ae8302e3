"""The commands of ``luna-fairseq``, one a file; :mod:`luna_fairseq.cli` imports the one that is asked for."""

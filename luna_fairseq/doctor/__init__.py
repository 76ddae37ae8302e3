"""``luna-fairseq doctor``: what is checked on a machine, one file a kind of check.

``verdicts.py`` collects what they say; ``examination.py`` is the list of them in their order.
"""

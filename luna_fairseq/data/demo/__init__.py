"""The corpus of the demo: English and German from a small but real grammar; ``lexicon.txt`` has the words."""

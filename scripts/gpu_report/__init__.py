"""What a GPU does with Luna, in minutes: what ``scripts/gpu_report.sh`` runs, a part at a time.

``python -m scripts.gpu_report run PART FOLDER``  one part, whose findings are written as they are made
``python -m scripts.gpu_report tables FOLDER``    all that is there, as report.json and report.md
"""

import time

# When this process began, nearly: nothing has been imported yet.
BEGAN = time.monotonic()

# What each part may take from there on, in seconds: rows that would begin later are left out. A row that is at work
# then has GRACE more. Together with the tables eight minutes.
SECONDS = {"correctness": 140, "layers": 85, "training": 75, "decoding": 75, "lra": 65}
GRACE = 6

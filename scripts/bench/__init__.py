"""What Luna costs, measured and on paper; run from the root of a clone, or with what holds scripts/ in PYTHONPATH.

``python -m scripts.bench``                  layers, training and generation next to softmax attention
``python -m scripts.bench.length``           the paper's efficiency table: training by input length
``python -m scripts.bench.training_speed``   training speed of several configs side by side
``python -m scripts.bench.cost``             operations, memory and hours of the paper's runs, on paper
"""

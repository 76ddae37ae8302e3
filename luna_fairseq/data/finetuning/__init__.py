"""Labelled data to folders for fairseq's fine-tuning tasks, in the pieces of a pretrained model.

    luna-fairseq prepare glue --task SST-2 --data GLUE_FOLDER --pieces FOLDER --out OUT      sentence_prediction
    luna-fairseq prepare race --data RACE_FOLDER --pieces FOLDER --out OUT                   sentence_ranking
    luna-fairseq prepare csqa --data FOLDER --pieces FOLDER --out OUT                        sentence_ranking

FOLDER is an OUT of luna-fairseq prepare corpus, or has dict.txt beside sentencepiece.model, or dict.txt beside
encoder.json and vocab.bpe, as for a published model. OUT appears when it is finished. The data, as they are
published:

    glue   SST-2/{train,dev,test}.tsv and so on; the folder of the task alone will do
    race   {train,dev,test}/{middle,high}/*.txt; the splits are valid (dev), test, test1 (middle) and test2 (high)
    csqa   {train,dev}_rand_split.jsonl; the test set has no answers and is left out

There is one file for each kind of data, named like it. They share ``output`` (what is written) and ``command`` (the
options and the run).
"""

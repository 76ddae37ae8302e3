"""The Long Range Arena's data, generated or as published, to folders for the tasks ``lra-text`` and ``lra-image``.

    prepare listops --out OUT                      generated; --data FOLDER reads basic_{train,val,test}.tsv
    prepare text --data aclImdb --out OUT          {train,test}/{pos,neg}/*.txt, byte by byte
    prepare retrieval --data FOLDER --out OUT      new_aan_pairs.{train,eval,test}.tsv, byte by byte
    prepare image --data cifar-10-batches-py --out OUT        data_batch_1 to 5 and test_batch, in grey
    prepare pathfinder --size 32 --out OUT         generated; --data FOLDER reads LEVEL/{metadata,imgs}
    prepare digits --out OUT                       scikit-learn's digits, 8x8: real images that need no download

OUT appears when it is finished; --smoke writes a few examples to OUT/smoke. As tokens OUT has src-bin and label-bin,
and src1-bin for second documents, each as fairseq-preprocess --only-source writes them; a byte or a grey value is its
decimal number, a symbol of its own. --as pixels writes OUT/input/{train,valid,test}.src, an image a line, and
OUT/label/{train,valid,test}.label.

There is one file for each kind of data, named like it. They share ``dataset`` (what a reader hands over), ``output``
(what is written) and ``command`` (the options and the run).
"""

"""Training sets from videos: ``build`` makes them, ``read`` streams them.

Sources are found and parted by identity (``sources``), cut into stretches of one face (``scenes``), judged (``filters``), turned
into crops, sound and labels (``samples``) video by video (``videos``), packed (``shards``) and reported (``report``).
"""

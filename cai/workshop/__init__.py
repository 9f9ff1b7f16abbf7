"""The constitution workshop: what an editor does between an edit and a run.

    testing      the worked examples of every principle, put to the judge
    difference   what two constitutions differ in, word by word
    impact       what an edit would change in a run, before a full re-label is paid for
    interchange  other people's files in, and out again
    layout       one way to write a constitution file
    suggest      principles that would explain what people preferred

Nothing here changes a run or a constitution unless a file is named to be written.
"""

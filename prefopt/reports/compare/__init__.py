"""Runs side by side: what their folders hold becomes settings, statistics, tables, figures and one page.

runs        the folders, read           same        refusal of runs that may not stand in one table
settings    runs by seed, by method     measures    a run's numbers; a setting's mean and interval
statistics  pure functions of arrays    differences between methods, in words
health      what to look at, in words   samples     answers to the same prompts
optimum     what the known optimum says of runs
figures     what is drawn               drawing     by whom: the page's script, or files
tables      results.csv, results.md     page        index.html
folder      what an earlier report left in it
"""

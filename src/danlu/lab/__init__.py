"""The laboratory: experiments on finished runs that compare methods, and drive them too far on purpose.

In:  finished runs.
Out: ``methods`` (what is gained at the same distance from the SFT model, at equal cost) and ``goodhart`` (how far a
reward model can be trusted), each as figures on disk.
Left out: everything that an arm of an experiment does, which is the pipeline's (``pipeline``, ``align``).
"""

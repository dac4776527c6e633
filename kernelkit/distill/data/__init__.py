"""From files to batches: documents are read, tokenised, packed into rows, and dealt out to ranks in a fixed order.

:mod:`~kernelkit.distill.data.config` says what is wanted, :func:`~kernelkit.distill.data.pipeline.open_data` checks it
and gives the loaders.
"""

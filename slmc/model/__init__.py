"""The sequential recommender on an LLM's layers, and SASRec.

Read ``recommender``, ``packing`` (its attention), ``sasrec``; then where weights come from:
``sources``, ``backbone``, ``weights``, ``decoders`` (which are refused), ``selfcheck``, ``origin``;
then ``loading`` and ``saving``; then quantized weights: ``codes``, ``quantized``,
``quantized_table``. Imported by everything that trains, measures, compresses or exports.
"""

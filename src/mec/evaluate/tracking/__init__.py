"""Tracking with frozen features: nothing is trained (UniTrack, Wang et al. 2021).

The way of a frame: a reader (``*_sources``, ``motchallenge``, ``posetrack``, ``video``) opens sequences of frames and
what is given in them; ``dense`` makes feature maps; then

- propagation: ``propagation`` carries labels (``vos``), ``correlation`` and ``track_box`` a box (``sot``);
- association: ``looks`` takes the cells of what is found, ``similarity`` compares them, ``motion`` expects boxes and
  ``association`` joins all to tracks, frame by frame in ``track_objects`` (``mot``, ``mots``, ``pose``).

``runs`` goes over the sequences, keeps tracks (``*_files``) and resumes; ``*_figures`` compare them with the truth;
``render`` draws. ``sot``, ``vos``, ``mot``, ``mots``, ``pose`` and ``track`` are what users call.
"""

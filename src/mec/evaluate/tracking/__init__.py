"""Tracking with frozen features, without training (UniTrack, Wang et al. 2021).

Public functions: ``sot``, ``vos``, and in ``mot`` the three tasks ``mot``, ``mots`` and ``pose``, return a Result;
``track`` tracks an object in any video. ``runner`` has what the tasks share: settings, output folder, resuming, videos.

- Input: ``datasets`` reads the sequences of a benchmark (types in ``sequences``) and writes tracks in its format;
  ``dense_features`` computes the feature maps of the frozen encoder for every frame.
- Propagation: ``sot`` moves a box from frame to frame, ``vos`` moves labels.
- Association: ``appearance`` takes the features of detected objects (``skeletons`` draws poses as masks) and compares
  them, ``association`` predicts boxes and assigns detections to tracks, ``track_objects`` does this frame by frame.
- ``metrics`` compares tracks with ground truth.
"""

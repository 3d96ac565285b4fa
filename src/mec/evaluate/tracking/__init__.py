"""Tracking with frozen features, without training (UniTrack, Wang et al. 2021).

- Input: ``datasets`` reads the sequences of a benchmark (types in ``sequences``) and writes tracks in its format;
  ``dense_features`` computes the feature maps of the frozen encoder for every frame.
- Propagation: ``sot`` moves a box from frame to frame, ``vos`` moves labels.
- Association: ``appearance`` takes the features of detected objects and compares them, ``association`` predicts boxes
  and assigns detections to tracks, ``mot`` does this frame by frame for boxes, masks and poses.
- ``runner`` has what the tasks share: settings, output folder, resuming, videos. ``metrics`` compares tracks with
  ground truth.
"""

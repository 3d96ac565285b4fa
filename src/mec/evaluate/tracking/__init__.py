"""Tracking with frozen features, without training (UniTrack, Wang et al. 2021).

Public functions: ``sot``, ``vos``, and in ``mot`` the three tasks ``mot``, ``mots`` and ``pose``, return a Result;
``track`` tracks an object in any video.

Parts:

- ``datasets``: one module per benchmark reads its sequences (types in ``sequences``) and writes tracks in its format.
- ``dense_features``: feature maps of the frozen encoder for every frame.
- Propagation: ``correlation`` and ``track_box`` move a box from frame to frame, ``propagation`` moves labels.
- Association: ``appearance`` takes the features of detected objects (``skeletons`` draws poses as masks),
  ``similarity`` compares them, ``motion`` predicts boxes, ``association`` assigns detections to tracks, and
  ``track_objects`` runs all of this frame by frame.
- ``runner``: loop over the sequences, output folder, resuming. ``rendering``: previews and videos of tracks.
- ``metrics``: one module per benchmark compares tracks with ground truth.
"""

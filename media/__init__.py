"""From a media file to the frames and the sound of a snippet, without tensors."""

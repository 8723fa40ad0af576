"""Sound in: decoding any file (`decode`, without torch) and the log-mel front end (`fbank`)."""

"""Studies of what models cost and what they do with hours of audio: efficiency, long recordings, needles."""

"""One open media file: frames and sound of any stretch of it, cut at the same time.

T is the number of frames of a snippet, S its samples of sound; an image is RGB uint8
(H, W, 3). All times are in seconds on the file's own presentation clock, which its video
and its sound share.

A read makes one seek and one pass over the packets. Each packet goes to the consumer of its
stream: a `VideoConsumer` keeps the frame that is on screen at each wanted time, an
`AudioConsumer` puts samples where their timestamps say.
"""

import contextlib
import itertools
import math
import os
from functools import partial

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from harness.errors import BadInput
from media.format import TOLERANCE

# `media.prepare.write_media` writes this comment into each of its files: the prepared films, and
# the films of the toy world. Its words are those of the default, and files with other groups of
# pictures have them too.
MARK = "prepared for pretraining: a group of pictures a snippet"

# The FFmpeg demuxers that read one file and follow no references to others.
DEMUXERS = "asf,avi,flac,flv,matroska,mov,mp3,mpeg,mpegts,mxf,ogg,wav"

TIMEOUT = 30  # seconds to wait for a server's answer
CHUNK = 16  # snippets that are read at a time where a whole film is read

# A snippet that lost more than this share of its frames or its sound counts as damaged.
DAMAGED = 0.1

# What FFmpeg raises where a file is cut off, overwritten or full of zeros.
OF_DAMAGE = (
    av.error.InvalidDataError,
    av.error.BlockingIOError,
    av.error.MemoryError,
    av.error.PermissionError,
)

# Seconds: containers round timestamps to a millisecond, so closer times are equal.
CLOCK = 0.001

# Seconds: the decoder of a lossy sound needs a little of what precedes the cut.
LEAD = 0.15

# Seconds before the wanted time at which each attempt starts. Key frames of x264 are up to 250
# frames apart, which is 25 s of film at 10 frames a second.
PREROLLS = (LEAD, 2.0, 15.0, 60.0)

# Seconds: a first frame that comes later than this does not show what is wanted before it.
LATE = 0.5

HOLE = 10.0  # seconds: a file that has no packets for longer lacks something
PLACES = 20  # at which we look for packets, where a clock may jump

CENTRE = (0.5, 0.5)  # the position of a central crop

# We raise each error ourselves, so FFmpeg need not print it.
av.logging.set_level(av.logging.PANIC)


class Reader:
    """An open media file.

    language  the audio track to prefer, as the file tags it ("eng", "deu"); if there is
              no such track, or no language is given, the default track is read

    Attributes:
    video, audio  PyAV's streams that are read; None where the file has none
    lost          what the last read lost: the share of the video's packets that could not be
                  decoded, or the share of the sound's samples that are missing, if larger
    process       id of the process that opened the file

    Raises BadInput if FFmpeg cannot open the file.
    """

    def __init__(self, path, language=None):
        self.path = os.fspath(path)
        self.process = os.getpid()
        self.lost = 0.0
        self.position = 0  # the last byte at which `packet_ends` found a packet
        self.container = open_media(self.path)
        # One reformatter keeps swscale's tables from frame to frame.
        self.reformatter = VideoReformatter()
        self.video = self.choose("video")
        self.audio = self.choose("audio", language)
        self.aspect = 1.0  # of a pixel
        if self.video is not None:
            self.aspect = float(self.video.sample_aspect_ratio or 1)
        for stream in (self.video, self.audio):
            if stream is not None:
                # Several processes read at once, so one thread for each decoder is
                # enough. It has to be set before the codec opens.
                stream.codec_context.thread_count = 1

    def choose(self, media_type, language=None):
        """Return the stream of this type ("video" or "audio") to read, or None."""
        usable = self.usable_streams(media_type)
        return max(usable, key=partial(preference, language=language), default=None)

    def usable_streams(self, media_type):
        """Return the streams of this type that can be read."""
        streams = self.container.streams
        return [stream for stream in streams if is_usable(stream, media_type)]

    def close(self):
        self.container.close()

    def span(self, *streams, exact=True):
        """Return (start, end), in seconds, of what all of these streams cover.

        exact  True: the ends are those of the last packets, because a header may be wrong
               or lack the duration. False: a header that has it is trusted.

        Raises what `last_packets` does.
        """
        starts = []
        ends = []
        for stream in streams:
            start = start_of(stream)
            starts.append(start)
            ends.append(start + float((stream.duration or 0) * stream.time_base))
        if exact or not all(stream.duration for stream in streams):
            container_end = (self.container.duration or 0) / av.time_base
            ends = self.last_packets(streams, max(*ends, container_end))
        return max(starts), min(ends)

    def last_packets(self, streams, end):
        """Return when the last packet of each stream ends, in seconds.

        Most files need a look at their last second only, counted from `end`, which is the
        end by the header. Where a stream has no packet there, we look further back.

        Raises BadInput if a stream has none anywhere, or if a server stopped answering after the
        file was opened; and av.error.FFmpegError if the disc or the server fails.
        """
        size = self.container.size  # Where a server breaks off, FFmpeg forgets it.
        for back in (1, 10, 100, 1000, math.inf):
            ends = self.packet_ends(streams, end - back)
            if len(ends) == len(streams) or back > end:
                break
        for stream in streams:
            if stream not in ends:
                raise BadInput(f"{self.path}: nothing of its {stream.type} can be read")
        if "://" in self.path and end - min(ends.values()) > HOLE and self.position < 0.9 * size:
            raise BadInput(f"{self.path}: its server stopped answering")
        return [ends[stream] for stream in streams]

    def packet_ends(self, streams, start):
        """Return {stream: when its last packet ends}, of packets from `start` (s) on."""
        consumers = {stream: Consumer(stream, start) for stream in streams}
        start = max(start, -1e6)  # FFmpeg has no -inf.
        ends = {}
        # After any other error, as of a disc or a server, the file may be whole.
        with contextlib.suppress(*OF_DAMAGE):
            self.seek(start, any_frame=True)
            for packet in self.packets(streams):
                if packet.size:
                    _, end = consumers[packet.stream].packet_times(packet)
                    ends[packet.stream] = max(end, ends.get(packet.stream, 0.0))
                    self.position = max(self.position, packet.pos or 0)
        return ends

    def clock_jumps(self, streams, start, end):
        """Whether more than half of the time from `start` to `end` (s) has no packet of a stream.

        So it is where a broadcast's clock is set to another time, or two recordings are laid end
        to end: FFmpeg takes a step back for the end of a count of 26.5 hours. Containers whose
        clock cannot jump are not looked at.
        """
        if not self.container.format.flags & Flags.ts_discont.value:
            return False
        if not self.is_hole(streams, (start + end) / 2):
            return False  # A hole of more than half would lie here, too.
        places = start + (end - start) * (np.arange(PLACES) + 0.5) / PLACES
        return sum(self.is_hole(streams, place) for place in places) > PLACES / 2

    def is_hole(self, streams, time):
        """Whether a seek to a time (s) finds a packet, but none within HOLE of that time."""
        consumers = {stream: Consumer(stream, time) for stream in streams}
        with contextlib.suppress(*OF_DAMAGE):
            self.seek(time, any_frame=True)
            for packet in self.packets(streams):
                found, _ = consumers[packet.stream].packet_times(packet)
                if found > -math.inf:
                    return abs(found - time) > HOLE
        return False

    def seek(self, time, **options):
        """Go to a key frame at `time` (s) or before.

        Callers pass times before the start on purpose: some demuxers seek by decoding time,
        which begins earlier than presentation time.
        """
        try:
            self.container.seek(round(time * av.time_base), **options)
        except av.error.FFmpegError:
            # Only AVI refuses a time before its start.
            self.container.seek(self.container.start_time or 0, **options)

    def packets(self, streams):
        """Yield the packets of these streams, and at their ends an empty one of each.

        After that PyAV raises IndexError if another stream has only just appeared, as a second
        track can near the end of an MPEG program stream.
        """
        with contextlib.suppress(IndexError):
            yield from self.container.demux(streams)

    def read(self, times=(), sound_from=0.0, samples=0, rate=48000, keep=lambda frame: frame):
        """Return (a list with an image for each of `times`, float32 array (samples,)).

        times       ascending, in seconds; the frame on screen at each time is taken
        sound_from  when the sound begins, in seconds; it is mono, at `rate` Hz
        keep        turns an av.VideoFrame into the image that is kept of it

        A seek can land after the wanted sound begins. Then we seek again, further back.

        Past the end of its stream the last frame stays on screen, and the sound is silent.
        Sets `lost`. Raises av.error.FFmpegError.
        """
        for preroll in PREROLLS:
            video = VideoConsumer(self.video, times, keep)
            audio = AudioConsumer(self.audio, sound_from, samples, rate)
            consumers = [consumer for consumer in (video, audio) if not consumer.done]
            self.seek(min(consumer.start for consumer in consumers) - preroll)
            self.feed(video, audio, [consumer.stream for consumer in consumers])
            if all(consumer.complete() for consumer in consumers):
                break
        self.lost = max(consumer.lost() for consumer in consumers)
        return video.images, audio.sound

    def feed(self, video, audio, streams):
        """Hand packets of `streams` to the consumers until both have all they want."""
        for packet in self.packets(streams):
            # An empty packet without a time is the end of its stream. One with a time stands for
            # a frame that the file's writer dropped.
            is_dropped_frame = packet.size == 0 and packet.dts is not None
            if not is_dropped_frame:
                consumer = video if packet.stream is self.video else audio
                if not consumer.done:
                    consumer.take(packet)
            if video.done and audio.done:
                break

    def resize(self, frame, short_side, multiple=1):
        """Return an av.VideoFrame as RGB uint8 (H, W, 3), upright and with square pixels.

        short_side  pixels of its shorter side; both sides are multiples of `multiple`
        """
        width = frame.width * self.aspect
        height = frame.height
        # Sides are counted in units of `multiple` pixels.
        units_a_pixel = short_side / min(width, height) / multiple
        new_width = round(width * units_a_pixel) * multiple
        new_height = round(height * units_a_pixel) * multiple
        image = self.squeeze(frame, width=new_width, height=new_height)
        if frame.rotation:
            # The file gives the degrees to turn it, counterclockwise, as rot90 turns.
            image = np.rot90(image, round(frame.rotation / 90))
        return image

    def squeeze(self, frame, width, height):
        """Return an av.VideoFrame as RGB uint8 (height, width, 3), whatever its shape.

        Colours by a matrix that FFmpeg cannot convert are taken for those of BT.709.
        """
        reformat = partial(
            self.reformatter.reformat,
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
        try:
            squeezed = reformat()
        except av.error.FFmpegError:
            squeezed = reformat(src_colorspace=Colorspace.ITU709)
        return squeezed.to_ndarray()


# -------------------------------------------------------------------------------------
# Opening a file
# -------------------------------------------------------------------------------------


def open_media(path):
    """Return PyAV's container of a path or URL.

    Raises BadInput if FFmpeg cannot open it.
    """
    try:
        container = None
        if path.endswith(".mkv"):
            container = open_if_prepared(path)
        if container is None:
            container = open_container(path)
        return container
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
        raise BadInput(f"{path}: not a media file that can be read") from error
    except (av.error.FFmpegError, OSError) as error:
        raise BadInput(f"{path}: {error.strerror or error}") from error


def open_if_prepared(path):
    """Return the container if `write_media` wrote this file, else None.

    FFmpeg knows such a file from its first bytes. The close look that it takes at any other
    file costs 2 to 4 times as much.
    """
    container = open_container(path, probesize="32768")
    if container.metadata.get("COMMENT") == MARK:
        return container
    container.close()
    return None


def open_container(path, **options):
    """Open a path or URL, and make sure that it cannot make FFmpeg open anything else.

    options  FFmpeg's options, beside those that see to that
    """
    if "://" in path:
        address = path
        protocols = "http,https,httpproxy,tcp,tls"
        timeout = TIMEOUT
    else:
        address = f"file:{path}"
        protocols = "file"
        timeout = None
    options["format_whitelist"] = DEMUXERS
    options["protocol_whitelist"] = protocols
    return av.open(address, options=options, metadata_errors="replace", timeout=timeout)


def is_usable(stream, media_type):
    """Whether a stream is of this type, FFmpeg can decode it, and it is not cover art."""
    if stream.type != media_type or not stream.codec_context:
        return False
    return not stream.disposition & Disposition.attached_pic


def preference(stream, language):
    """What to sort by: the wanted language counts most, then the file's own default."""
    has_language = language is not None and stream.language == language
    is_default = bool(stream.disposition & Disposition.default)
    return has_language, is_default


def start_of(stream):
    """When a stream begins, in seconds, by its header."""
    return float((stream.start_time or 0) * stream.time_base)


# -------------------------------------------------------------------------------------
# Taking packets
# -------------------------------------------------------------------------------------


class Consumer:
    """Takes the packets of one stream.

    start  when what it wants begins, in seconds

    Its times are floats, for speed.
    """

    def __init__(self, stream, start):
        self.stream = stream
        self.start = start
        self.tick = 0.0  # seconds
        if stream is not None:
            self.tick = float(stream.time_base)
        self.tried = 0  # packets that were handed to the decoder
        self.failed = 0  # those of them that it could not decode

    def packet_times(self, packet):
        """Return (start, end) of a packet, in seconds; -inf if it has no timestamp.

        In AVI a packet has a decoding time and no presentation time.
        """
        stamp = packet.dts if packet.pts is None else packet.pts
        start = -math.inf if stamp is None else stamp * self.tick
        return start, start + (packet.duration or 0) * self.tick

    def time_of(self, frame):
        """When a frame begins, in seconds; -inf if it has no timestamp."""
        if frame.pts is not None:
            return frame.time
        return -math.inf if frame.dts is None else frame.dts * self.tick

    def frames_of(self, packet):
        """Decode a packet. A damaged one has no frames, and FFmpeg recovers after it."""
        self.tried += 1
        try:
            return packet.decode()
        except av.error.FFmpegError:
            self.failed += 1
            return []

    def earliest(self):
        """When what it wants begins, or its stream if that begins later, in seconds."""
        return max(self.start, start_of(self.stream))


class VideoConsumer(Consumer):
    """Keeps an image of the frame that is on screen at each of `times` (s, ascending).

    images  what `keep` made of those frames; times that show the same frame share one
    """

    def __init__(self, stream, times, keep):
        super().__init__(stream, start=times[0] if len(times) else 0.0)
        self.times = list(times)
        self.keep = keep
        self.images = []
        self.waiting = []  # packets up to the next wanted time, which are not decoded yet
        self.started = False  # whether decoding has begun
        self.on_screen = None  # the latest frame
        self.image = None  # of the frame on screen, once it is needed
        self.first_time = math.inf  # seconds, of the first frame that came

    @property
    def done(self):
        return len(self.images) == len(self.times)

    def complete(self):
        """Whether no frame is missing before the first wanted time."""
        return self.done and self.first_time <= self.earliest() + CLOCK

    def lost(self):
        """Share of the packets that could not be decoded, or of the times without a frame."""
        return max(self.failed / max(1, self.tried), self.missed())

    def missed(self):
        """Share of the wanted times whose frame never came; the first that came stands in for it.

        A little late is not missed: in AVI a first frame may be shown later than its stream begins.
        """
        begin = start_of(self.stream)
        missed = [time for time in self.times if begin <= time < self.first_time - LATE]
        return len(missed) / len(self.times)

    def take(self, packet):
        if packet.size:
            self.wait(packet)
        else:
            self.finish(packet)

    def wait(self, packet):
        """Collect packets up to the next wanted time, and decode from the last key frame on.

        Reading a group of pictures that is not wanted costs little, but decoding it would
        double the work. Once decoding has begun only a key frame waits, and it is dropped for
        another one that follows it at once. So where every frame is a key frame only the wanted
        ones are decoded, and no other file has gaps in what its decoder gets.
        """
        time, _ = self.packet_times(packet)
        if time > self.times[len(self.images)] + CLOCK:
            self.started = True
            self.decode_waiting()
            if self.done:
                return
        waits = time <= self.times[len(self.images)] + CLOCK
        if self.started:
            waits = waits and packet.is_keyframe and time > -math.inf
        if waits and packet.is_keyframe:
            self.waiting = []
        self.waiting.append(packet)
        if not waits:
            self.decode_waiting()

    def finish(self, flush):
        """Take the empty packet at the stream's end: the decoder gives what it holds."""
        self.waiting.append(flush)
        self.decode_waiting()
        if self.on_screen is not None:
            self.keep_until(math.inf)

    def decode_waiting(self):
        """Decode the packets that wait, or as many of them as are needed."""
        packets = self.waiting
        self.waiting = []
        for packet in packets:
            for frame in self.frames_of(packet):
                self.receive(frame)
                if self.done:
                    return

    def receive(self, frame):
        """Put a frame on screen. The one before it was there until this frame's time."""
        time = self.time_of(frame)
        if self.on_screen is None:
            # Nothing came before the first frame, so it stands in for what is missing.
            self.first_time = time
            self.on_screen = frame
        self.keep_until(time - CLOCK)
        self.on_screen = frame
        self.image = None
        # If it begins at the very time that is wanted, there is no need to wait for the
        # next frame.
        self.keep_until(time + CLOCK)

    def keep_until(self, time):
        """Keep the frame on screen for each wanted time before `time`."""
        while not self.done and self.times[len(self.images)] < time:
            if self.image is None:
                self.image = self.keep(self.on_screen)
            self.images.append(self.image)


class AudioConsumer(Consumer):
    """Puts `count` samples of mono sound at `rate` Hz where their timestamps say.

    sound  float32 (count,), from `start` (s) on: from -1 to 1, though a decoder of loud
           sound may exceed it, and 0 where nothing came
    """

    def __init__(self, stream, start, count, rate):
        super().__init__(stream, start)
        self.rate = rate
        self.sound = np.zeros(count, np.float32)
        self.received = 0  # samples, of those wanted
        self.next_index = None  # of the sample that comes next
        self.first_index = None  # of the first sample that came
        self.ended = False  # whether the stream has
        self.resampler = None
        self.sound_format = None  # format, layout and rate that the resampler is made for

    @property
    def done(self):
        if self.ended or len(self.sound) == 0:
            return True
        return self.next_index is not None and self.next_index >= len(self.sound)

    def complete(self):
        """Whether no sound is missing before the first wanted sample."""
        if self.first_index is None:
            return False
        first_time = self.first_index / self.rate + self.start
        return first_time <= self.earliest() + TOLERANCE

    def lost(self):
        """Share of the samples that never came, decoded or not."""
        return 1 - self.received / len(self.sound)

    def take(self, packet):
        _, end = self.packet_times(packet)
        if not packet.size:
            # The stream has ended: the decoder gives what it holds, then the resampler.
            self.lay(self.frames_of(packet))
            self.lay([None])
            self.ended = True
        elif end > self.start - LEAD / 2:
            # Half of LEAD is lead enough for a decoder. The seek goes back by all of it, so
            # that the packet in which that half begins comes whole.
            self.lay(self.frames_of(packet))

    def lay(self, frames):
        """Put the sound of these frames in its place; None empties the resampler."""
        for frame in frames:
            for block in self.to_mono(frame):
                self.align(block)
                self.copy(sound_of(block))

    def align(self, block):
        """Set the index at which this block of sound begins.

        Timestamps are rounded, so sound that is nearly on time continues where the last
        block ended, as does sound without a timestamp. A gap or an overlap moves it.
        """
        time = self.time_of(block)
        if time > -math.inf:
            index = round((time - self.start) * self.rate)
        elif self.next_index is not None:
            index = self.next_index
        else:
            index = 0
        if self.next_index is None:
            self.first_index = index
            self.next_index = index
        elif abs(index - self.next_index) > TOLERANCE * self.rate:
            self.next_index = index

    def copy(self, block):
        """Copy the wanted part of a block, float32 (n,), to where it begins."""
        begin = self.next_index
        end = begin + len(block)
        low = max(begin, 0)
        high = min(end, len(self.sound))
        if low < high:
            self.sound[low:high] = block[low - begin : high - begin]
            self.received += high - low
        self.next_index = end

    def to_mono(self, frame):
        """Return blocks of mono sound at `rate`, of one frame or of None at the end."""
        sound_format = None
        if frame is not None:
            sound_format = (frame.format.name, frame.layout.name, frame.rate)
        rest = []
        if sound_format != self.sound_format:
            # The stream begins or ends, or a broadcast changes from stereo to 5.1.
            rest = self.change_resampler(sound_format)
        if self.resampler is not None:
            return [*rest, *self.resampler.resample(frame)]
        if frame is not None:
            return [*rest, frame]
        return rest

    def change_resampler(self, sound_format):
        """Make a resampler of this format. Return what the old one still held.

        Sound that is mono and at `rate` already needs no resampler. Any other is converted
        to 16 bits, because FFmpeg mixes floats without normalising them: 5.1 channels would
        come out 2.7 times as loud.
        """
        rest = []
        if self.resampler is not None:
            rest = self.resampler.resample(None)
        self.sound_format = sound_format
        self.resampler = None
        as_wanted = (None, ("fltp", "mono", self.rate), ("s16", "mono", self.rate))
        if sound_format not in as_wanted:
            self.resampler = av.AudioResampler("s16", "mono", self.rate)
        return rest


def sound_of(block):
    """The sound of a mono av.AudioFrame of 16 bits or floats, as float32 (n,)."""
    plane = block.planes[0]
    if block.format.name == "s16":
        return np.frombuffer(plane, np.int16, block.samples) * np.float32(2**-15)
    return np.frombuffer(plane, np.float32, block.samples)


# -------------------------------------------------------------------------------------
# Snippets
# -------------------------------------------------------------------------------------


def crop(image, position, size):
    """Cut a square out of RGB (H, W, 3) and return it as (3, size, size).

    position  (down, right): 0 is the top or the left edge, 1 the bottom or the right one
    """
    height, width, _ = image.shape
    down, right = position
    top = min(int(down * (height - size + 1)), height - size)
    left = min(int(right * (width - size + 1)), width - size)
    square = image[top : top + size, left : left + size]
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def read_snippets(reader, start, count, fmt, keep):
    """Read `count` successive snippets, the first of which begins at `start` (s).

    keep  turns an av.VideoFrame into the image that is kept of it

    Returns (a list of count * T images, waveform float32 (count * S,)). Raises BadInput if
    the snippets are damaged, or av.error.FFmpegError.
    """
    times = start + np.arange(count * fmt.frames) / fmt.fps
    images, waveform = reader.read(
        times,
        sound_from=start,
        samples=count * fmt.samples,
        rate=fmt.rate,
        keep=keep,
    )
    # In the worst case one snippet lost all of it.
    check_whole(reader, start, images, lost=reader.lost * count)
    return images, waveform


def has_key_frames_only(path, packets=100):
    """Return whether so many packets from the beginning of a film's picture are all key frames.

    Raises BadInput if FFmpeg cannot open the file.
    """
    with contextlib.closing(Reader(path)) as reader, contextlib.suppress(av.error.FFmpegError):
        for packet in itertools.islice(reader.packets([reader.video]), packets):
            if packet.size and not packet.is_keyframe:
                return False
    return True


def check_whole(reader, start, images, lost):
    """Raise BadInput if the images that were read from `start` (s) on are those of damage.

    lost  the share that one snippet lost of its frames or of its sound
    """
    # `keep` may return images of two shapes where a broadcast changes from 16:9 to 4:3.
    changes_shape = any(image.shape != images[0].shape for image in images)
    if lost > DAMAGED or not images or changes_shape:
        raise BadInput(f"{reader.path}: damaged at {start:.1f} s")


def read_film(reader, start, count, fmt, keep, chunk=CHUNK):
    """Read `count` successive snippets, `chunk` at a time.

    Yields (images, waveform) as `read_snippets` returns them. Where that fails, the
    snippets are read one by one, and one that cannot be read yields (None, None).
    """
    for first in range(0, count, chunk):
        chunk_start = start + first * fmt.seconds
        chunk_count = min(chunk, count - first)
        try:
            yield read_snippets(reader, chunk_start, chunk_count, fmt, keep)
        except (av.error.FFmpegError, BadInput):
            if chunk_count == 1:
                yield None, None
            else:
                yield from read_film(reader, chunk_start, chunk_count, fmt, keep, chunk=1)

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "signer/v1"
)

const (
	callTimeout = 60 * time.Second
	// afterRefusal is how long a caller waits that was refused: it does not become a flood.
	afterRefusal = 10 * time.Millisecond
)

type span struct{ begin, end time.Time }

// overlap returns which part of the time from sent to answered falls in the span.
func (s span) overlap(sent, answered time.Time) float64 {
	from, to := sent, answered
	if from.Before(s.begin) {
		from = s.begin
	}
	if to.After(s.end) {
		to = s.end
	}
	if took := answered.Sub(sent); took > 0 && to.After(from) {
		return float64(to.Sub(from)) / float64(took)
	}
	return 0
}

// tally counts what one caller got in one turn.
type tally struct {
	window    span
	within    float64 // items of the window; a request counts by the part of its time in it
	items     int
	latencies []int64
	failures  map[string]int
}

func (t *tally) over() bool { return !time.Now().Before(t.window.end) }

// answered notes a request with its items that came out as they have to.
func (t *tally) answered(sent time.Time, items int) {
	now := time.Now()
	t.items += items
	t.within += float64(items) * t.window.overlap(sent, now)
	if items > 0 && !now.Before(t.window.begin) && now.Before(t.window.end) {
		t.latencies = append(t.latencies, now.Sub(sent).Microseconds())
	}
}

// refused notes a request that failed as a whole, under the reason that the appliance gave.
func (t *tally) refused(failure *spb.Status) {
	switch codes.Code(failure.Code) {
	case codes.Unimplemented, codes.Unauthenticated, codes.PermissionDenied, codes.NotFound,
		codes.InvalidArgument, codes.Internal:
		must(fmt.Errorf("a request failed: %s: %s", reason(failure), failure.Message))
	}
	t.failures[reason(failure)]++
	time.Sleep(afterRefusal)
}

func reason(failure *spb.Status) string {
	for _, detail := range failure.Details {
		var info errdetails.ErrorInfo
		if detail.MessageIs(&info) && detail.UnmarshalTo(&info) == nil {
			return info.Reason
		}
	}
	return code.Code(failure.Code).String()
}

// caller loads the appliance until the window of the tally is over.
type caller interface{ load(*tally) }

func newCaller(o options, number int, connection *grpc.ClientConn, check *checker) caller {
	client := pb.NewSigningServiceClient(connection)
	if o.window == 0 {
		return &calls{client, newRequest(o, number, 0), check}
	}
	stream, err := client.SignStream(context.Background())
	must(err)
	requests := make([]*request, o.window)
	for i := range requests {
		requests[i] = newRequest(o, number, i)
	}
	return &messages{stream, requests, check}
}

// connected makes one call over a new connection: no measurement has its handshake.
func connected(o options, connection *grpc.ClientConn, check *checker) {
	r, t := newRequest(o, 0, 0), tally{failures: map[string]int{}}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	answer, err := pb.NewSigningServiceClient(connection).SignBatch(ctx, r.next())
	if err != nil {
		failure := status.Convert(err).Proto()
		must(fmt.Errorf("the first call failed: %s: %s", reason(failure), failure.Message))
	}
	check.good(answer, r, &t)
}

// calls makes one call after the other.
type calls struct {
	client  pb.SigningServiceClient
	request *request
	check   *checker
}

func (c *calls) load(t *tally) {
	for !t.over() {
		message, sent := c.request.next(), time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		answer, err := c.client.SignBatch(ctx, message)
		cancel()
		if err != nil {
			t.refused(status.Convert(err).Proto())
			continue
		}
		t.answered(sent, c.check.good(answer, c.request, t))
	}
}

// messages keeps a stream's messages in flight: each answer is followed by the next message,
// which takes the place of the request that was answered.
type messages struct {
	stream   grpc.BidiStreamingClient[pb.SignStreamRequest, pb.SignStreamResponse]
	requests []*request
	check    *checker
}

func (m *messages) load(t *tally) {
	sent := make([]time.Time, len(m.requests))
	send := func(tag uint64) {
		sent[tag] = time.Now()
		err := m.stream.Send(&pb.SignStreamRequest{Tag: tag, Batch: m.requests[tag].next()})
		if err == io.EOF { // the stream has ended: Recv says why
			_, err = m.stream.Recv()
		}
		must(err)
	}
	for tag := range m.requests {
		send(uint64(tag))
	}
	for inFlight := len(m.requests); inFlight > 0; {
		answer, err := m.stream.Recv()
		must(err)
		tag := answer.Tag
		if tag >= uint64(len(sent)) {
			must(fmt.Errorf("an answer has the tag %d, which no request has", tag))
		}
		if failure := answer.GetError(); failure != nil {
			t.refused(failure)
		} else {
			t.answered(sent[tag], m.check.good(answer.GetBatch(), m.requests[tag], t))
		}
		if t.over() {
			inFlight--
		} else {
			send(tag)
		}
	}
}

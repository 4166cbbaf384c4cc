// A load client for the appliance: single calls, batches, and messages on streams.
//
//	load -address 127.0.0.1:7443 -ca ca.pem -certificate me.pem -key me.key \
//	     -name facilities/01-001/keys/records -callers 16 -seconds 3
//	load ... -callers 4 -window 64       4 streams with 64 messages in flight on each
//
// It prints one line of JSON: items a second, the latencies' quantiles, failures by
// reason, and its own CPU an item. With -step it prints "ready", measures once for every
// line of its standard input, with all latencies, and ends where the input ends.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

type options struct {
	address, serverName, ca, certificate, key string
	names                                     []string
	format, publicKey, bad                    string
	step                                      bool
	batch, callers, window, connections       int
	seconds, warmUp                           float64
}

func readOptions() options {
	var o options
	var file string
	flag.StringVar(&o.address, "address", "", "host:port of the appliance")
	flag.StringVar(&o.serverName, "server-name", "localhost", "the name in the server's certificate")
	flag.StringVar(&o.ca, "ca", "", "PEM file of the CA of the server's certificate")
	flag.StringVar(&o.certificate, "certificate", "", "PEM file of the client's certificate")
	flag.StringVar(&o.key, "key", "", "PEM file of the client's private key")
	flag.Func("name", "a key that signs; may be repeated, then they sign in turn",
		func(name string) error { o.names = append(o.names, name); return nil })
	flag.StringVar(&file, "names", "", "a file with names of keys, one a line")
	flag.StringVar(&o.format, "format", "MESSAGE", "MESSAGE, JWS, COSE_SIGN1, HCERT, CMS or TIMESTAMP")
	flag.StringVar(&o.bad, "bad", "", "payloads that do not parse, so that each item has to fail: cut, empty, lists or members")
	flag.IntVar(&o.batch, "batch", 1, "items a request")
	flag.IntVar(&o.callers, "callers", 16, "calls at a time, or streams")
	flag.IntVar(&o.window, "window", 0, "messages in flight on each stream; 0: calls, no streams")
	flag.IntVar(&o.connections, "connections", 1, "callers share them")
	flag.Float64Var(&o.seconds, "seconds", 3, "how long it measures")
	flag.Float64Var(&o.warmUp, "warm-up", 0.2, "seconds of load before that")
	flag.StringVar(&o.publicKey, "public-key", "", "PEM file: some signatures are verified")
	flag.BoolVar(&o.step, "step", false, "measure once for every line of standard input")
	flag.Parse()
	if file != "" {
		text, err := os.ReadFile(file)
		must(err)
		o.names = append(o.names, strings.Fields(string(text))...)
	}
	if len(o.names) == 0 || min(o.batch, o.callers, o.connections) < 1 || o.window < 0 {
		fmt.Fprintln(os.Stderr, "load: -name is needed; -batch, -callers and -connections are at least 1")
		os.Exit(2)
	}
	return o
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func connect(o options) []*grpc.ClientConn {
	pem, err := os.ReadFile(o.ca)
	must(err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		must(fmt.Errorf("%s has no certificate", o.ca))
	}
	pair, err := tls.LoadX509KeyPair(o.certificate, o.key)
	must(err)
	secure := credentials.NewTLS(&tls.Config{
		RootCAs: pool, ServerName: o.serverName, Certificates: []tls.Certificate{pair},
		MinVersion: tls.VersionTLS13,
	})
	connections := make([]*grpc.ClientConn, o.connections)
	for i := range connections {
		connections[i], err = grpc.NewClient(o.address, grpc.WithTransportCredentials(secure))
		must(err)
	}
	return connections
}

// A line of output. Rate, quantiles and latencies are those of the measured seconds: of the
// rate, a request counts by the part of its time that falls in them, and latencies are of
// requests that were answered in them. Items, failures and CPU are of the whole turn.
type line struct {
	Rate        float64        `json:"rate"`
	P50         float64        `json:"p50_ms"`
	P99         float64        `json:"p99_ms"`
	Items       int            `json:"items"`
	Failures    map[string]int `json:"failures"`
	CPU         float64        `json:"client_cpu_us_per_item"`
	LatenciesUs []int64        `json:"latencies_us,omitempty"`
}

func ownCPU() time.Duration {
	var usage syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// takeTurn loads the appliance from now on until the measured seconds are over, and waits for
// the answers to what is in flight then.
func takeTurn(o options, callers []caller) line {
	cpu := ownCPU()
	begin := time.Now().Add(time.Duration(o.warmUp * float64(time.Second)))
	window := span{begin, begin.Add(time.Duration(o.seconds * float64(time.Second)))}
	tallies := make([]tally, len(callers))
	var all sync.WaitGroup
	for i, each := range callers {
		tallies[i] = tally{window: window, failures: map[string]int{}}
		all.Go(func() { each.load(&tallies[i]) })
	}
	all.Wait()
	cpu = ownCPU() - cpu

	result := line{Failures: map[string]int{}}
	within := 0.0
	for _, each := range tallies {
		within += each.within
		result.Items += each.items
		result.LatenciesUs = append(result.LatenciesUs, each.latencies...)
		for reason, count := range each.failures {
			result.Failures[reason] += count
		}
	}
	result.Rate = within / o.seconds
	result.CPU = float64(cpu.Nanoseconds()) / 1e3 / float64(max(1, result.Items))
	sorted := slices.Sorted(slices.Values(result.LatenciesUs))
	result.P50, result.P99 = quantile(sorted, 0.50), quantile(sorted, 0.99)
	if !o.step {
		result.LatenciesUs = nil
	}
	return result
}

// quantile returns milliseconds; 0 if there was no answer.
func quantile(sorted []int64, at float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[int(at*float64(len(sorted)-1))]) / 1e3
}

func main() {
	o := readOptions()
	check := newChecker(o)
	connections := connect(o)
	for _, each := range connections {
		connected(o, each, check)
	}
	callers := make([]caller, o.callers)
	for i := range callers {
		callers[i] = newCaller(o, i, connections[i%len(connections)], check)
	}
	output := json.NewEncoder(os.Stdout)
	if !o.step {
		must(output.Encode(takeTurn(o, callers)))
		return
	}
	fmt.Println("ready")
	for input := bufio.NewScanner(os.Stdin); input.Scan(); {
		must(output.Encode(takeTurn(o, callers)))
	}
}

// A client in Go that knows the appliance by its .proto files only: it signs over one stream.
//
//	client < request.json, with
//	  {"address", "server_name", "ca", "cert", "key": file names, "public_key": PEM file,
//	   "requests": [{"key": a key's name, "format": number, "payload": base64}]}
//
// Every request is one message with its own tag and request id; answers come in any order.
// Signatures of FORMAT_MESSAGE are verified with crypto/ecdsa. Prints {"answers": [{"verified":
// bool} or {"failure": reason} or {"error": reason}], in the order of the requests, "end": code}.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	signerv1 "signer/v1"
)

type asked struct {
	Address    string `json:"address"`
	ServerName string `json:"server_name"`
	CA         string `json:"ca"`
	Cert       string `json:"cert"`
	Key        string `json:"key"`
	PublicKey  string `json:"public_key"`
	Requests   []struct {
		Key     string          `json:"key"`
		Format  signerv1.Format `json:"format"`
		Payload []byte          `json:"payload"`
	} `json:"requests"`
}

type answer struct {
	Verified *bool  `json:"verified,omitempty"`
	Failure  string `json:"failure,omitempty"`
	Error    string `json:"error,omitempty"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var what asked
	if err := json.NewDecoder(os.Stdin).Decode(&what); err != nil {
		return err
	}
	public, err := publicKey(what.PublicKey)
	if err != nil {
		return err
	}
	connection, err := connect(what)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream, err := signerv1.NewSigningServiceClient(connection).SignStream(ctx)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- send(stream, what) }()

	answers := make([]answer, len(what.Requests))
	end := "OK"
	for waiting := len(answers); ; {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			end = status.Code(err).String()
			break
		}
		request := what.Requests[response.Tag]
		answers[response.Tag] = read(response, request.Format, request.Payload, public)
		if waiting--; waiting == 0 {
			if err := stream.CloseSend(); err != nil {
				return err
			}
		}
	}
	if err := <-sent; err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"answers": answers, "end": end})
}

func send(stream signerv1.SigningService_SignStreamClient, what asked) error {
	for tag, request := range what.Requests {
		message := &signerv1.SignStreamRequest{
			Tag: uint64(tag),
			Batch: &signerv1.SignBatchRequest{
				Key:       request.Key,
				Format:    request.Format,
				Payloads:  [][]byte{request.Payload},
				RequestId: uuid(),
			},
			Timeout: durationpb.New(30 * time.Second),
		}
		if err := stream.Send(message); err != nil && !errors.Is(err, io.EOF) {
			return err // io.EOF: the stream has ended, Recv says why
		}
	}
	return nil
}

func read(
	response *signerv1.SignStreamResponse, format signerv1.Format, payload []byte, public *ecdsa.PublicKey,
) answer {
	if failed := response.GetError(); failed != nil {
		return answer{Error: reason(failed)}
	}
	batch := response.GetBatch()
	if failed := batch.GetFailures()[0]; failed != nil {
		return answer{Failure: reason(failed)}
	}
	verified := false
	if signatures := batch.GetSignatures(); format == signerv1.Format_FORMAT_MESSAGE && len(signatures) == 1 {
		verified = verify(public, payload, signatures[0])
	}
	return answer{Verified: &verified}
}

func verify(public *ecdsa.PublicKey, message, signature []byte) bool {
	if len(signature) != 64 {
		return false
	}
	digest := sha256.Sum256(message)
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	return ecdsa.Verify(public, digest[:], r, s)
}

func reason(failed *rpc.Status) string {
	for _, detail := range failed.Details {
		info := new(errdetails.ErrorInfo)
		if detail.UnmarshalTo(info) == nil {
			return info.Reason
		}
	}
	return failed.Message
}

func connect(what asked) (*grpc.ClientConn, error) {
	authorities, err := os.ReadFile(what.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authorities)
	pair, err := tls.LoadX509KeyPair(what.Cert, what.Key)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(what.Address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs:      pool,
		ServerName:   what.ServerName,
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS13,
	})))
}

func publicKey(path string) (*ecdsa.PublicKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM in " + path)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	public, ok := parsed.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("no ECDSA key in " + path)
	}
	return public, nil
}

func uuid() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
